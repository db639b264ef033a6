"""Local training, evaluation and the execution of a model under masks: shared by clients and server."""
