"""A company in two clouds on one machine: see README.md here, and scripts/two-clouds."""
