"""Teachers: sources of the logits that a student is trained on."""
