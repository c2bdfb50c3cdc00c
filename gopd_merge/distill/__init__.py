"""The method: roles on one backbone, target, loss, step."""
