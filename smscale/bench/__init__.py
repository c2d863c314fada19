"""Measurements that a user makes on a machine of their own: chunk strategies, and scaling with workers."""
