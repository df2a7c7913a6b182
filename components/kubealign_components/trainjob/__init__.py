"""Training on several nodes: a Kubeflow TrainJob that is started, watched through its queue, and ended."""
