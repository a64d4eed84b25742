"""What happens to a batch on the device, inside the training step."""
