"""Training, evaluation and prediction: the mains and the parts they are assembled from."""
