"""Full-catalogue rankings, their metrics, and the baselines beside a model."""
