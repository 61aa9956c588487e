"""`attfc evaluate`, `compare` and `report`: figures of trained models on people they never saw, by any protocol of `attfc.evaluation.protocols`."""
