"""What happens after the deployment: predictions and labels kept, the live score, drift, champion and challenger."""
