"""One file a command that is no stage of the graph: start a project, use a model, look after the store."""
