# A client of the soak test: inserts rows one by one, wherever they are taken, and notes what it was told of each.
#
#	insert_client.pl <client number> <file of notes> <stop file> <conninfo> [<conninfo> ...]
#
# A note is a line: "A seq" acknowledged; "R seq" refused, surely not committed (class 40, 25006, 53400, or no connection); "U seq" not known.
# Each attempt has a sequence number of its own, so a row that is there although it was refused, or that is there twice, is noticed.
# It ends when the stop file is there.
use strict;
use warnings;
use IPC::Open2;
use Time::HiRes qw(usleep);

my ($client, $notes_path, $stop_path, @targets) = @ARGV;
my ($pid, $from, $to);
my $target = $client % @targets;

$SIG{PIPE} = 'IGNORE';
open(my $notes, '>', $notes_path) or die "$notes_path: $!";
$notes->autoflush(1);

sub connect_target
{
	$pid = open2($from, $to, "exec psql -XqAt -v VERBOSITY=verbose -d '$targets[$target]' 2>&1");
	$to->autoflush(1);
	return;
}

sub disconnect
{
	return unless $pid;
	close($to);
	close($from);
	kill('KILL', $pid);
	waitpid($pid, 0);
	undef $pid;
	return;
}

# Everything that psql says until "done"; `complete` is false if it ended before.
sub statement
{
	my ($sql) = @_;
	my $answer = '';
	print $to "$sql\n\\echo done\n";
	while (defined(my $line = <$from>))
	{
		return ($answer, 1) if $line eq "done\n";
		$answer .= $line;
	}
	return ($answer, 0);
}

for (my $sequence = 1; !-e $stop_path; $sequence++)
{
	connect_target() unless $pid;
	my ($answer, $complete) = statement("INSERT INTO soak (client, sequence) VALUES ($client, $sequence) RETURNING 'inserted';");
	my ($sqlstate) = $answer =~ /(?:ERROR|FATAL|PANIC):\s+([0-9A-Z]{5}):/;
	my $fate = 'U';
	if ($complete && !defined $sqlstate && $answer =~ /^inserted$/m)
	{
		$fate = 'A';
	}
	elsif (defined $sqlstate && $sqlstate =~ /^(?:40...|25006|53400|57P03)$/)
	{
		$fate = 'R';
	}
	elsif ($answer =~ /connection to server .* failed/)
	{
		$fate = 'R';
	}
	print $notes "$fate $sequence\n";
	next if $fate eq 'A';

	# Somewhere else, and not at once: an election takes its time.
	disconnect();
	$target = ($target + 1) % @targets;
	usleep(20_000);
}
disconnect();
