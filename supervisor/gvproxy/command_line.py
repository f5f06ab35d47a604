"""gvproxy's flags and their defaults."""

from __future__ import annotations

from proto.go_flags import Flag

SSH_PORT = 2222
SUBNET = "192.168.127.0/24"

FLAGS = {
    "config": Flag(str, "YAML file to read; without one, DNS zones, search domains and an SSH port are set up"),
    "debug": Flag(bool, "log at level debug"),
    "deviceIP": Flag(str, "the VM's address; by default the second of the subnet"),
    "ec2-metadata-access": Flag(bool, "let the VM reach 169.254.0.0/16"),
    "forward-dest": Flag(list, "socket in the VM that a -forward-sock leads to"),
    "forward-identity": Flag(list, "key file for a -forward-sock"),
    "forward-sock": Flag(list, "unix socket on this host that leads to one in the VM, over SSH"),
    "forward-user": Flag(list, "user in the VM for a -forward-sock"),
    "gatewayIP": Flag(str, "the gateway's address; by default the first of the subnet"),
    "hostIP": Flag(str, "the address that stands for this host; by default the last of the subnet"),
    "listen": Flag(
        list, "where the API listens: unix:///PATH, tcp://HOST:PORT, vsock://[CID]:PORT, unixpacket:///PATH"
    ),
    "listen-bess": Flag(str, "where a VM attaches by BESS's protocol: unixpacket:///PATH"),
    "listen-qemu": Flag(str, "where a QEMU attaches: unix:///PATH or tcp://HOST:PORT"),
    "listen-stdio": Flag(str, "attach the VM on standard input and output, whatever the value"),
    "listen-vfkit": Flag(str, "where a VM attaches by vfkit's protocol: unixgram:///PATH"),
    "listen-vpnkit": Flag(str, "where VMs attach by HyperKit's protocol: unix:///PATH"),
    "log-file": Flag(str, "file for the log, instead of standard error"),
    "mtu": Flag(int, "the VM's MTU; 0 is 1500"),
    "notification": Flag(str, "who is told of VMs: unix:///PATH"),
    "pcap": Flag(str, "file for all traffic"),
    "pid-file": Flag(str, "file for the process id"),
    "services": Flag(str, "where the API listens as well, without /connect"),
    "ssh-port": Flag(int, "port of 127.0.0.1 that leads to the VM's port 22; -1 for none", SSH_PORT),
    "subnet": Flag(str, "the VM's network", SUBNET),
    "version": Flag(bool, "print the version"),
}
