"""What Tandem tells of itself: metrics and logs."""
