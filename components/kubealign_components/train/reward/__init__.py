"""Training of the reward model: pairs, the model with its scalar head, the trainer."""
