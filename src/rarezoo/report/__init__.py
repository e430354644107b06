"""What people see: montages, figures, one HTML page, and Weights & Biases."""
