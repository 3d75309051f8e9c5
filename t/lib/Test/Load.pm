package Test::Load;

# Load on an nginx of Test::LLM's, and what it takes of its one worker.

use strict;
use warnings;

use Exporter 'import';
use JSON::PP;

our @EXPORT = qw/ load_run worker_ns median /;

# What sse_load says after requests with these options.

sub load_run {
    my ($t, @args) = @_;
    open my $f, '-|', "$t->{build}/tests/bench/sse_load", '-p',
        $t->port('http'), @args or die "sse_load: $!";
    local $/;
    my $r = decode_json(<$f>);
    close $f or die 'sse_load failed';
    return $r;
}

# Nanoseconds on a CPU.

sub worker_ns {
    my ($t) = @_;
    my ($pid) = $t->workers();
    my ($ns) = split ' ', $t->read_file("/proc/$pid/schedstat");
    return $ns;
}

sub median {
    my @s = sort { $a <=> $b } @_;
    return $s[$#s / 2];
}

1;
