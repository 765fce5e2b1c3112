"""Open a pre-trained model, fine-tune it, predict with it, save it. Plain torch, no Ray."""
