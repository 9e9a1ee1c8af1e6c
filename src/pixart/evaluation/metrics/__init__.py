"""The metrics that papers report: FID, KID, precision and recall, CLIPScore."""
