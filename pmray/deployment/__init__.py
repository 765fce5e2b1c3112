"""What puts a run and its winner onto other people's machines: manifests, dashboards and alerts, made from a spec."""
