"""The Kubernetes objects, the images and the file for Compose, rendered and read: no cluster, no container engine."""
