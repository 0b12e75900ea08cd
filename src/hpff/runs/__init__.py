"""What is on disk: run directories, checkpoints, logs, exports."""
