"""What others get: the card, and publishing a merged adapter on the Hub."""
