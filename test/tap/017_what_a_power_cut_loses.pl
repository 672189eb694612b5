# The tests' own power cuts: what was not synced is really lost, what was synced never, whoever wrote it and whoever synced it.
# No server; 017_power_cuts.pl uses them on a cluster.
use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use PostgreSQL::Test::Utils;
use IPC::Run;
use PowerLoss;
use Test::More;
use Time::HiRes qw(usleep);

my $number = 0;
my $seed = $ENV{SEED} || int(rand(2**31));
note("seed: $seed");
srand($seed);

# A directory, and a process in it that does what it is told.
sub new_disk
{
	my (%options) = @_;
	my $base = PostgreSQL::Test::Utils::tempdir('disk' . ++$number);
	mkdir("$base/$_") foreach ('data', 'log');
	my $power = PowerLoss->new(data_dir => "$base/data", log_dir => "$base/log", megabytes => $options{megabytes} || 32);
	return { power => $power, data => "$base/data", base => $base };
}

sub start_writer
{
	my ($disk) = @_;
	my ($input, $output) = ('', '');
	my $program = PowerLoss::build('power_loss_workload');
	my $writer = { input => \$input, output => \$output };
	$writer->{run} = IPC::Run::start(
		[ $disk->{power}->environment, $program, 'script' ],
		'<', \$input, '>', \$output, init => sub { chdir($disk->{data}) or die "$disk->{data}: $!" });
	push @{ $disk->{writers} }, $writer;
	return $writer;
}

# instruct($disk, 'write a 0 10 x', ...): by the first process; instruct_nth($disk, 1, ...) by the second.
sub instruct { my ($disk, @commands) = @_; return instruct_nth($disk, 0, @commands); }

sub instruct_nth
{
	my ($disk, $which, @commands) = @_;
	start_writer($disk) while @{ $disk->{writers} || [] } <= $which;
	my $writer = $disk->{writers}[$which];
	foreach my $command (@commands)
	{
		${ $writer->{output} } = '';
		${ $writer->{input} } .= "$command\n";
		$writer->{run}->pump until ${ $writer->{output} } =~ /\n/;
		die "$command: ${ $writer->{output} }" if ${ $writer->{output} } ne "ok\n";
	}
	return;
}

sub crash
{
	my ($disk) = @_;
	foreach my $writer (@{ delete $disk->{writers} || [] })
	{
		$writer->{run}->signal('KILL');
		eval { $writer->{run}->finish };
	}
	return;
}

sub power_cut
{
	my ($disk, %params) = @_;
	crash($disk);
	return $disk->{power}->cut(%params);
}

sub contents
{
	my ($disk, $file) = @_;
	return -f "$disk->{data}/$file" ? PostgreSQL::Test::Utils::slurp_file("$disk->{data}/$file") : undef;
}

# What it looks like, short: x10 y5
sub runs_of
{
	my ($text) = @_;
	return 'none' unless defined $text;
	my @runs;
	while ($text =~ /(.)\1*/gs)    # no more than 64 kB at a time
	{
		my ($character, $length) = ($1 eq "\0" ? '0' : $1, length($&));
		if (@runs && $runs[-1][0] eq $character) { $runs[-1][1] += $length; }
		else { push @runs, [ $character, $length ]; }
	}
	return join(' ', map { "$_->[0]$_->[1]" } @runs);
}

# ---- each way to write, each way to sync
foreach my $case (
	[ 'unsynced overwriting is lost', 'x10', 'write a 0 10 x', 'fsync a', 'write a 3 2 y' ],
	[ 'synced overwriting is kept', 'x3 y2 x5', 'write a 0 10 x', 'write a 3 2 y', 'fdatasync a' ],
	[ 'unsynced growth is lost', 'x10', 'write a 0 10 x', 'fsync a', 'append a 7 y' ],
	[ 'a file that was never synced is empty', '', 'write a 0 10 x', 'append a 10 y' ],
	[ 'growth over the end with overwriting', 'x10', 'write a 0 10 x', 'fsync a', 'writev a 5 20 y' ],
	[ 'a hole', 'x10', 'write a 0 10 x', 'fsync a', 'write a 50 10 y' ],
	[ 'an unsynced ftruncate is lost', 'x10', 'write a 0 10 x', 'fsync a', 'resize a 4' ],
	[ 'an unsynced truncate is lost', 'x10', 'write a 0 10 x', 'fsync a', 'truncate a 0' ],
	[ 'a synced truncate is kept', 'x4', 'write a 0 10 x', 'fsync a', 'truncate a 4', 'fsync a' ],
	[ 'truncate and other contents', 'x10', 'write a 0 10 x', 'fsync a', 'truncate a 0', 'append a 30 y' ],
	[ 'an unsynced O_TRUNC is lost', 'x10', 'write a 0 10 x', 'fsync a', 'empty a', 'append a 3 y' ],
	[ 'posix_fallocate', 'x10', 'write a 0 10 x', 'fsync a', 'reserve a 100' ],
	[ 'a descriptor that can not read', 'x10', 'wronly a 0 10 x', 'fsync a', 'wronly a 3 10 y' ],
	[ 'O_DSYNC is an fsync of its own', 'x3 y2 x5', 'write a 0 10 x', 'fsync a', 'dsync a 3 2 y' ],
	[ 'the last of many versions', 'x10', 'write a 0 10 x', 'fsync a', map { "write a $_ 5 y" } 0 .. 9 ],
	[ 'only the file that was synced', 'x10', 'write a 0 10 x', 'fsync a', 'write a 0 10 y', 'write b 0 10 z', 'fsync b' ],
	[ 'a renamed file keeps its record', 'x10', 'write b 0 10 x', 'fsync b', 'write b 0 5 y', 'rename b a' ],
	[ 'renamed over an older one', 'z5', 'write a 0 10 x', 'write b 0 5 z', 'fsync b', 'write a 0 3 y', 'rename b a' ],
	[ 'a removed file leaves nothing for the next', 'z5', 'write b 0 10 x', 'unlink b', 'write a 0 5 z', 'fsync a' ],
	[ 'nor for the next unsynced one', '', 'write b 0 10 x', 'fsync b', 'write b 0 5 y', 'unlink b', 'write a 0 5 z' ],
	[ 'a removed file that is still open', 'z5', 'write b 0 10 x', 'hold b', 'unlink b', 'write a 0 5 z', 'fsync a' ],
	[ 'a change longer than a record', 'x1000000', 'write a 0 1000000 x', 'fsync a', 'write a 0 900000 y', 'resize a 5' ])
{
	my ($name, $expected, @commands) = @$case;
	my $disk = new_disk();
	instruct($disk, @commands);
	my $before = runs_of(contents($disk, 'a'));
	crash($disk);
	is(runs_of(contents($disk, 'a')), $before, "$name: a crash alone loses nothing");
	power_cut($disk);
	is(runs_of(contents($disk, 'a')), $expected, "$name: after a power cut");
}

# ---- across processes and crashes
{
	my $disk = new_disk();
	instruct_nth($disk, 0, 'write a 0 10 x', 'write b 0 10 x');
	instruct_nth($disk, 1, 'fsync a');
	instruct_nth($disk, 0, 'write a 0 2 y');
	crash($disk);
	instruct_nth($disk, 0, 'write a 5 2 z', 'append b 3 z');
	power_cut($disk);
	is(runs_of(contents($disk, 'a')), 'x10', 'synced by another process; unsynced before and after a crash');
	is(runs_of(contents($disk, 'b')), '', 'never synced, before and after a crash');
	instruct($disk, 'write a 0 4 w', 'write b 0 4 w', 'fsync a');
	power_cut($disk);
	is(runs_of(contents($disk, 'a')), 'w4 x6', 'a second power cut: what was synced after the first one is there');
	is(runs_of(contents($disk, 'b')), '', 'a second power cut: what was not is lost');
}

# ---- a disk that lies
{
	my $disk = new_disk();
	instruct($disk, 'write liar 0 10 x', 'write a 0 10 x', 'fsync liar', 'fsync a');
	$disk->{power}->lie_about('/liar');
	instruct($disk, 'write liar 0 10 y', 'write a 0 10 y', 'fsync liar', 'fsync a');
	power_cut($disk);
	is(runs_of(contents($disk, 'liar')), 'x10', 'an fsync that was a lie');
	is(runs_of(contents($disk, 'a')), 'y10', 'and one that was not');
	$disk->{power}->lie_about('');
	instruct($disk, 'write liar 0 10 z', 'fsync liar');
	power_cut($disk);
	is(runs_of(contents($disk, 'liar')), 'z10', 'an honest disk again');
}

# ---- the record is bounded: what is too old for it has been written by the kernel, and the file is as it once was
{
	my $disk = new_disk(megabytes => 4);
	instruct($disk, 'write a 0 65536 a', 'fsync a');
	foreach my $turn (1 .. 200)
	{
		instruct($disk, 'write a 0 65536 ' . chr(97 + $turn % 26));
	}
	my %counters = $disk->{power}->counters;
	cmp_ok($counters{ring_used}, '<=', 4 * 1024 * 1024, 'the record does not grow');
	cmp_ok($counters{written_back}, '>', 0, 'what no longer fits counts as written');
	power_cut($disk);
	like(runs_of(contents($disk, 'a')), qr/^[a-z]65536$/, 'the file is as it was at one moment');
}

# ---- any sequence of changes, against a model
sub random_change
{
	my ($model, $character) = @_;
	my $file = 'f' . int(rand(3));
	my $now = \$model->{now}{$file};
	my $kind = int(rand(10));
	my ($offset, $length) = (int(rand(20000)), 1 + int(rand(9000)));
	$$now = '' unless defined $$now;
	if ($kind < 5)
	{
		$$now .= "\0" x ($offset - length($$now)) if $offset > length($$now);
		substr($$now, $offset, $length) = $character x $length;
		return ($file, ('write', 'writev', 'wronly')[ rand(3) ] . " $file $offset $length $character");
	}
	if ($kind < 7) { $$now .= $character x $length; return ($file, "append $file $length $character"); }
	if ($kind == 7)
	{
		$$now = $offset < length($$now) ? substr($$now, 0, $offset) : $$now . "\0" x ($offset - length($$now));
		return ($file, "resize $file $offset");
	}
	$model->{durable}{$file} = $$now;
	$model->{versions}{$file} = [];
	return ($file, ('fsync', 'fdatasync')[ rand(2) ] . " $file");
}

# Every unit is as it was at one moment since the last fsync; zeros may stand where the file has grown.
sub is_a_mixture
{
	my ($text, $unit_bytes, @versions) = @_;
	for (my $offset = 0; $offset < length($text); $offset += $unit_bytes)
	{
		my $unit = substr($text, $offset, $unit_bytes);
		my $zeros = $unit =~ /^\0*\z/;
		next if $zeros || grep {
			my $version = length($_) > $offset ? substr($_, $offset, length($unit)) : '';
			my $common = length($version) < length($unit) ? length($version) : length($unit);
			$common > 0 && substr($version, 0, $common) eq substr($unit, 0, $common) && substr($unit, $common) =~ /^\0*\z/
		} @versions;
		return 0;
	}
	return 1;
}

# Truncated and then written to again: the tail of before must not come back beside what is new in one unit.
{
	my $disk = new_disk();
	my $not_a_mixture = 0;
	foreach my $round (1 .. 60)
	{
		my $durable = 'e' x 24103;
		instruct_nth($disk, 0, $_) foreach "empty f1", "append f1 24103 e", "fsync f1", "resize f1 17815", "write f1 19869 5896 d";
		power_cut($disk, keep => 'random', seed => $seed + $round);
		my $truncated = 'e' x 17815;
		$not_a_mixture++ unless is_a_mixture(contents($disk, 'f1'), 512, $durable, $truncated, $truncated . "\0" x 2054 . 'd' x 5896);
	}
	is($not_a_mixture, 0, 'truncated and written to again: each unit is as it was at one moment');
}

{
	my ($wrong, $kept_some, $lost_some, $not_a_mixture) = (0, 0, 0, 0);
	my $disk = new_disk();
	my $model = { now => {}, durable => {} };
	foreach my $round (1 .. 40)
	{
		my $keep = $round % 2 ? 'none' : 'random';
		$model->{versions} = {};
		foreach my $step (1 .. 30)
		{
			my ($file, $command) = random_change($model, chr(97 + ($round + $step) % 26));
			instruct_nth($disk, int(rand(2)), $command);
			push @{ $model->{versions}{$file} }, $model->{now}{$file};
		}
		power_cut($disk, keep => $keep, seed => $seed + $round);
		foreach my $file (sort keys %{ $model->{now} })
		{
			my $durable = $model->{durable}{$file} // '';
			my $is = contents($disk, $file);
			if ($keep eq 'none')
			{
				$wrong++ if $is ne $durable;
				$lost_some++ if $durable ne $model->{now}{$file};
			}
			else
			{
				$not_a_mixture++ unless is_a_mixture($is, 512, $durable, @{ $model->{versions}{$file} || [] });
				$wrong++ if !@{ $model->{versions}{$file} || [] } && $is ne $durable;
				$kept_some++ if $is ne $durable;
			}
			$model->{now}{$file} = $model->{durable}{$file} = $is;
		}
	}
	is($wrong, 0, 'random changes: a power cut leaves exactly what was synced');
	is($not_a_mixture, 0, 'random changes, some survive: each unit is as it was at one moment since then');
	cmp_ok($lost_some, '>', 10, 'unsynced changes were lost');
	cmp_ok($kept_some, '>', 5, 'some unsynced changes survived where they may');
}

# ---- writers and a syncer at the same time
my $wrong = '';
my $lost_some = 0;
foreach my $round (1 .. 4)
{
	my $disk = new_disk();
	my $files = 3;
	my $state = "$disk->{base}/state";
	my $run = IPC::Run::start(
		[ $disk->{power}->environment, PowerLoss::build('power_loss_workload'), 'race', $state, $files ],
		'<', '/dev/null', init => sub { chdir($disk->{data}) or die "$disk->{data}: $!"; setpgrp(0, 0); });
	my $pid = $run->{KIDS}[0]{PID};
	my $slurp_state = sub { my $text = -s $state ? PostgreSQL::Test::Utils::slurp_file($state) : ''; return unpack('(Q<4)*', $text); };
	my @numbers;
	do { usleep(20_000); @numbers = $slurp_state->(); }
	  until @numbers == 4 * $files && !grep { $numbers[ 4 * $_ + 2 ] < 20 } 0 .. $files - 1;
	kill('KILL', -$pid);
	eval { $run->finish };
	usleep(10_000) while kill(0, -$pid);
	@numbers = $slurp_state->();
	$disk->{power}->cut(keep => $round % 2 ? 'none' : 'random', seed => $seed + $round);
	foreach my $file (0 .. $files - 1)
	{
		my ($begun, undef, $synced) = @numbers[ 4 * $file .. 4 * $file + 2 ];
		my $text = contents($disk, "f$file");
		my @places = map { unpack('Q<', substr($text, 4096 * $_, 8)) } 0 .. 15;
		my ($least) = sort { $a <=> $b } @places;
		$wrong .= "f$file: $least, but $synced was synced; " if $least < $synced;
		$wrong .= "f$file: more than $begun; " if grep { $_ > $begun } @places;
		$lost_some++ if $least < $begun;
	}
}
is($wrong, '', 'writers and a syncer at the same time: what was complete when an fsync began is never lost');
cmp_ok($lost_some, '>', 0, 'and what was not is');

done_testing();
