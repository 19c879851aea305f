"""Studies of language models: what differs from studies of classifiers."""
