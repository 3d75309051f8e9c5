#!/usr/bin/perl

# A server that is not ours, as llm_meter sees it: it answers what the request
# itself asks for, byte by byte as the test wants them.
#
#     foreign.pl PORT LOG
#
# The body's "answer": { status, headers: { name: value }, pieces: [ text, … ],
# each written by itself, delay: seconds between them, cut: 1 for no end }.
# LOG gets a line of JSON for each request: uri, headers, body.

use strict;
use warnings;

use IO::Socket::INET;
use JSON::PP;
use Socket qw/ IPPROTO_TCP TCP_NODELAY /;
use Time::HiRes qw/ sleep /;

my ($port, $log) = @ARGV;
my $json = JSON::PP->new->utf8->canonical;
my $s = IO::Socket::INET->new(Listen => 128, LocalAddr => "127.0.0.1:$port",
                              ReuseAddr => 1) or die "port $port: $!";

$SIG{CHLD} = 'IGNORE';
$SIG{PIPE} = 'IGNORE';

while (1) {
    my $c = $s->accept() or next;
    my $pid = fork() // die "fork: $!";
    if ($pid == 0) {
        serve($c);
        exit 0;
    }
    close $c;
}

sub serve {
    my ($c) = @_;
    my $buf = '';

    setsockopt $c, IPPROTO_TCP, TCP_NODELAY, 1;
    while ($buf !~ /\r\n\r\n/) {
        sysread($c, $buf, 65536, length $buf) or return;
    }
    $buf =~ s/^(\S+) (\S+).*?\r\n(.*?)\r\n\r\n//s;
    my ($method, $uri, $head) = ($1, $2, $3);
    my %h = map { /^([^:]+):\s*(.*)$/ ? (lc $1 => $2) : () }
            split /\r\n/, $head;
    while (length $buf < ($h{'content-length'} // 0)) {
        sysread($c, $buf, 65536, length $buf) or return;
    }

    open my $f, '>>', $log or die "$log: $!";
    syswrite $f, $json->encode({ method => $method, uri => $uri, headers => \%h,
                                 size => length $buf }) . "\n";

    my $body = eval { $json->decode($buf) } // {};
    my $a = ref $body->{answer} ? $body->{answer} : { pieces => [ '{}' ] };
    my $status = $a->{status} // 200;
    my %out = ('Content-Type' => 'application/json', %{ $a->{headers} // {} });
    my $size = 0;
    $size += length for @{ $a->{pieces} };

    $out{'Content-Length'} = $size if $out{'Content-Type'} =~ /json/;
    syswrite $c, "HTTP/1.1 $status X\r\nConnection: close\r\n"
        . join('', map { "$_: $out{$_}\r\n" } sort keys %out) . "\r\n";

    for (@{ $a->{pieces} }) {
        length or next;
        defined syswrite $c, $_ or do {
            syswrite $f, $json->encode({ left => 1 }) . "\n";
            return;
        };
        sleep $a->{delay} if $a->{delay};
    }
    if ($a->{cut}) {
        setsockopt $c, Socket::SOL_SOCKET(), Socket::SO_LINGER(),
                   pack 'll', 1, 0;
    }
    close $c;
}
