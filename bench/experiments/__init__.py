"""What generated adapters and experts can do: quality, not speed."""
