"""From a model to a torch.fx graph, and what a graph would leave out of it."""
