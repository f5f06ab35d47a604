#!/bin/busybox sh
# udhcpc's event script: configures the interface and writes what the server said to $LEASE_FILE.
alias ip='busybox ip'
case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    ip addr flush dev "$interface"
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    ip addr add "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route add default via "${router%% *}"
    {
        [ -z "$search" ] || echo "search $search"
        for server in $dns; do echo "nameserver $server"; done
    } >/etc/resolv.conf
    for name in ip mask router dns mtu search lease serverid; do
        eval "echo $name=\$$name"
    done >"$LEASE_FILE"
    ;;
esac
