"""What the example programs share: data, networks, training, the run."""
