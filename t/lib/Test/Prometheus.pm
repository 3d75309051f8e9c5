package Test::Prometheus;

# A strict reader of Prometheus' text format (version 0.0.4).
#
#   my $m = Test::Prometheus->parse($text);
#   $m->{errors}                     what is wrong, a list of sentences
#   $m->value('name', model => 'm')  a sample's value, or undef
#   $m->sum('name', status => 200)   the sum of all that have these labels
#
# Wrong is: a line of no known form, a name, label or value that is none, a
# label twice, an escape that is none, bytes that are no UTF-8, a sample twice,
# a family without HELP and TYPE before it or not in one piece, a histogram
# whose buckets sink, are not in order or do not end with +Inf at its count, a
# counter that is negative.

use strict;
use warnings;

my $name = qr/[a-zA-Z_:][a-zA-Z0-9_:]*/;
my $number = qr/[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]Inf|NaN/;

sub parse {
    my ($class, $text) = @_;
    my $self = bless { errors => [], samples => {}, order => [], help => {},
                       type => {} }, $class;
    my $copy = $text;

    $self->wrong('no newline at the end') if $text !~ /\n\z/;
    $self->wrong('no UTF-8') if !utf8::decode($copy);

    my $current = '';
    my $line = 0;
    my %done;

    for (split /\n/, $text) {
        $line++;

        if (/^# (HELP|TYPE) ($name) (.*)$/) {
            my ($what, $family, $rest) = (lc $1, $2, $3);

            $self->wrong("line $line: $family has $what twice")
                if exists $self->{$what}{$family};
            $self->wrong("line $line: bad type $rest")
                if $what eq 'type'
                   && $rest !~ /^(?:counter|gauge|histogram|summary|untyped)$/;
            $self->wrong("line $line: bad escape in help")
                if $what eq 'help' && $rest =~ /\\(?![\\n])/;
            $self->{$what}{$family} = $rest;

            if ($what eq 'help') {
                $done{$current} = 1;
                $current = $family;
            } else {
                $self->wrong("line $line: TYPE without HELP before it")
                    if $current ne $family;
            }
            next;
        }

        if (!/^($name)(?:\{(.*)\})? ($number)$/) {
            $self->wrong("line $line: $_");
            next;
        }

        my ($sample, $labels, $value) = ($1, $2 // '', $3);
        my $family = $sample;
        my $type = $self->{type}{$family} // '';

        if ($sample =~ /^(.*)_(?:bucket|sum|count)$/
            && ($self->{type}{$1} // '') eq 'histogram')
        {
            $family = $1;
            $type = 'histogram';
        }

        $self->wrong("line $line: $sample is not under its family")
            if $family ne $current || $done{$family};
        $self->wrong("line $line: $sample has no type") if $type eq '';

        my %labels = $self->labels($labels, $line);
        my $key = join ',', map { "$_=$labels{$_}" } sort keys %labels;

        $self->wrong("line $line: $sample {$key} is there twice")
            if exists $self->{samples}{$sample}{$key};
        $self->wrong("line $line: $sample is negative")
            if $type eq 'counter' && $value < 0;
        $self->{samples}{$sample}{$key} = { %labels, ':value' => $value };
        push @{ $self->{order} }, [ $sample, \%labels, $value ];
    }

    $self->histogram($_) for grep { $self->{type}{$_} eq 'histogram' }
                             sort keys %{ $self->{type} };

    return $self;
}

sub wrong { push @{ $_[0]{errors} }, $_[1] }

sub labels {
    my ($self, $text, $line) = @_;
    my %labels;

    while ($text =~ s/^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"//) {
        my ($k, $v) = ($1, $2);
        $self->wrong("line $line: label $k twice") if exists $labels{$k};
        $self->wrong("line $line: bad escape in $k")
            if $v =~ /(?<!\\)(?:\\\\)*\\[^\\"n]/;
        $v =~ s/\\(.)/$1 eq 'n' ? "\n" : $1/ge;
        $labels{$k} = $v;
        last if $text eq '' || $text !~ s/^,//;
    }
    $self->wrong("line $line: bad labels at '$text'") if $text ne '';

    return %labels;
}

sub histogram {
    my ($self, $family) = @_;
    my %series;

    for (@{ $self->{order} }) {
        my ($sample, $labels, $value) = @$_;
        my ($what) = $sample =~ /^\Q$family\E_(bucket|sum|count)$/ or next;
        my %l = %$labels;
        my $le = delete $l{le};
        my $key = join ',', map { "$_=$l{$_}" } sort keys %l;

        if ($what eq 'bucket') {
            push @{ $series{$key}{bucket} }, [ $le // 'none', $value ];
        } else {
            $series{$key}{$what} = $value;
        }
    }

    for my $key (sort keys %series) {
        my $s = $series{$key};
        my ($le, $n) = ('-Inf', 0);

        for (@{ $s->{bucket} // [] }) {
            $self->wrong("$family {$key}: le $_->[0] after $le")
                if $_->[0] !~ /^$number$/
                   || !($_->[0] eq '+Inf' ? $le ne '+Inf'
                        : $le eq '-Inf' || $_->[0] > $le);
            $self->wrong("$family {$key}: $_->[1] at $_->[0] after $n")
                if $_->[1] < $n;
            ($le, $n) = @$_;
        }
        $self->wrong("$family {$key}: does not end with +Inf") if $le ne '+Inf';
        $self->wrong("$family {$key}: no count of $n")
            if !defined $s->{count} || $s->{count} != $n;
        $self->wrong("$family {$key}: no sum") if !defined $s->{sum};
    }
}

sub value {
    my ($self, $sample, %labels) = @_;
    my $key = join ',', map { "$_=$labels{$_}" } sort keys %labels;
    my $s = $self->{samples}{$sample}{$key};

    return defined $s ? $s->{':value'} : undef;
}

sub sum {
    my ($self, $sample, %labels) = @_;
    my $sum = 0;

    for my $s (values %{ $self->{samples}{$sample} // {} }) {
        next if grep { ($s->{$_} // '') ne $labels{$_} } keys %labels;
        $sum += $s->{':value'};
    }
    return $sum;
}

1;
