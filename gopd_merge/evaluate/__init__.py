"""What a model is worth: tasks, graders, statistics."""
