"""Factors: how one use of parameters contributes its gradients to a kernel."""
