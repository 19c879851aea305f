"""Forward passes of any network, and the errors of devices."""
