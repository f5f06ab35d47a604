"""What the gateway itself answers: ARP, DHCP, DNS, ICMP."""
