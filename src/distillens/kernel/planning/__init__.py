"""Planning: how gradients are contracted, and what that takes in memory and time."""
