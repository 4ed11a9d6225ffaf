"""How addresses are written, and before which of them no proxy may stand."""

import pytest

from tfrec_serving.addresses import Turns, is_private, read_addresses


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("localhost:8500", "", "localhost:8500"),
        ("recommender", "", "recommender:8500"),
        ("my_service:9000", "", "my_service:9000"),
        ("[::1]:9000", "", "[::1]:9000"),
        ("[::1]", "", "[::1]:8500"),
        ("::1", "", "[::1]:8500"),
        ("2001:db8::1", "", "[2001:db8::1]:8500"),
        ("fe80::1%eth0", "", "[fe80::1%eth0]:8500"),
        ("grpc://host:1", "grpc", "host:1"),
        ("grpc://[::1]:1", "grpc", "[::1]:1"),
        ("grpcs://host.example.com", "grpcs", "host.example.com:443"),
        ("grpcs://10.0.0.1:8500/", "grpcs", "10.0.0.1:8500"),
        ("http://[::1]:8501/", "http", "http://[::1]:8501"),
        ("HTTPS://Host.example.com/models", "https", "https://Host.example.com/models"),
        ("dns:///host.example.com:1", "", "dns:///host.example.com:1"),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", "", "ipv4:10.0.0.1:1,10.0.0.2:1"),
        ("unix:/run/model.sock", "", "unix:/run/model.sock"),
    ],
)
def test_an_address_is_read(text, scheme, target):
    (address,) = read_addresses(f" {text} " if "ipv4" not in text else text)
    assert (address.scheme, address.target) == (scheme, target)
    assert address.is_rest is scheme.startswith("http")


def test_several_addresses():
    assert [a.target for a in read_addresses("a:1, [::1]:2,unix:/x")] == ["a:1", "[::1]:2", "unix:/x"]
    with pytest.raises(ValueError, match="need the same scheme. Received: 'a:1,http://b:2', with http and none"):
        read_addresses("a:1,http://b:2")
    with pytest.raises(ValueError, match="it has no host"):
        read_addresses("a:1,,b:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no host"), (":8500", "it has no host"), ("a:b", "Port could not be cast"), ("a:99999", "out of range"),
        ("ftp://a:1", "the scheme ftp:// is unknown"), ("a:1:2", "does not appear to be an IPv4 or IPv6 address"),
        ("[foo]:1", "does not appear to be"), ("[::1", "Invalid IPv6"), ("a b:1", "a character is not allowed"),
        ("http://user:secret@a:1", "a token goes into `metadata`"), ("grpc://a:1/path", "only a host and a port are read"),
        ("http://a:1/?x=1", "only a host and a port are read"), ("[::1]x:1", "is no address of a server"),
    ],
)  # fmt: skip
def test_what_is_no_address_says_how_one_is_written(text, message):
    with pytest.raises(ValueError, match=r"is no address of a server.*Write host:port, \[::1\]:port") as refused:
        read_addresses(text)
    assert message in str(refused.value)


def test_an_address_is_text():
    with pytest.raises(TypeError, match="`address` is text. Received: 8500"):
        read_addresses(8500)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "a.localhost", "localhost.", "127.0.0.1", "127.8.9.10", "::1", "[::1]", "10.1.2.3", "172.16.0.1",
     "172.31.255.255", "192.168.1.1", "recommender", "::ffff:10.0.0.1", "fd00::1", "fe80::1%eth0", "169.254.1.1", "0.0.0.0"],
)  # fmt: skip
def test_no_proxy_stands_before_this_machine_and_private_networks(host):
    assert is_private(host)
    assert read_addresses(f"[{host}]:1" if ":" in host and "[" not in host else f"{host}:1")[0].is_private


@pytest.mark.parametrize(
    "host", ["example.com", "8.8.8.8", "172.32.0.1", "192.169.0.1", "11.0.0.1", "2001:db8::1", "localhost.example.com"]
)
def test_others_follow_the_environment(host):
    assert not is_private(host)


def test_targets_of_grpc():
    private = ["unix:/x", "unix-abstract:x", "ipv4:10.0.0.1:1,10.0.0.2:1", "ipv6:[::1]:1", "dns:///localhost:1", "dns:host:1",
               "dns://8.8.8.8/host:1", "dns:[::1]:1"]  # fmt: skip
    assert all(read_addresses(text)[0].is_private for text in private)
    others = ["ipv4:10.0.0.1:1,8.8.8.8:1", "dns:///example.com:1", "xds:///host", "passthrough:///host:1"]
    assert not any(read_addresses(text)[0].is_private for text in others)


def test_each_address_is_tried_before_a_wait_and_the_next_call_starts_at_the_next():
    turns = Turns(2, 4)
    assert list(turns()) == [(0, 0.0), (1, 0.0), (0, 0.05), (1, 0.1)]
    assert [place for place, _ in turns()] == [1, 0, 1, 0]
    assert len(list(Turns(9, 4)())) == 9
