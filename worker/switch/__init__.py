"""The way of frames from VM to VM of one network, straight from worker to worker."""
