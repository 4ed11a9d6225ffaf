"""One page that shows what a run can do: made for people who look rather than read."""
