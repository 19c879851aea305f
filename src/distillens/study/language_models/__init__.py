"""Studies of language models: training, audits and results of next tokens."""
