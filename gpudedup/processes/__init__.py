"""Running processes: their memory captured, held still, or watched for writes."""
