"""Try several ways to train on the same images, and keep the one that validation prefers."""

# What each recipe does, in the order of training: the head takes seconds, and leaves its time to the others.
WAYS = {"head": "a head on trained features", "finetune": "fine-tuned", "fast": "from nothing"}
