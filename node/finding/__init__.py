"""Finding each other: where peers were seen, what they say in the DHT and on the LAN, and when to try again."""
