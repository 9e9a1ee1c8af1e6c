"""The figures that papers report: FID, KID, precision and recall, CLIPScore, HPSv2, and the folders of benchmarks."""
