"""IPv4: what the gateway does with packets between link and transport."""
