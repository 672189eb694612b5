/*
 * test_table_checksum.c
 *	  Sums of tables, and who differs from whom.
 */
#include <string.h>

#include "shared/table_checksum.h"
#include "tap.h"

static RowHash
hash_of(const char *text)
{
	return row_hash(text, strlen(text));
}

static TableSum
sum_of(const char *const *rows, int count)
{
	TableSum	sum = {0};

	for (int i = 0; i < count; i++)
		table_sum_add(&sum, hash_of(rows[i]));
	return sum;
}

static bool
hashes_equal(RowHash one, RowHash other)
{
	return one.high == other.high && one.low == other.low;
}

/* Nodes of different builds and machines compare them. */
static void
a_hash_is_the_same_for_ever(void)
{
	RowHash		empty = row_hash("", 0);
	RowHash		text = hash_of("a row of a table");

	ok(empty.high == UINT64_C(0xccd7589366717280) && empty.low == UINT64_C(0x3866f5cc406e49ff), "the hash of nothing");
	ok(text.high == UINT64_C(0x1472471142c1c673) && text.low == UINT64_C(0xfff31aa21204cf4a), "the hash of a text");
}

static void
each_bit_and_the_length_count(void)
{
	uint8_t		bytes[40] = {0};
	RowHash		before = row_hash(bytes, sizeof(bytes));

	for (size_t bit = 0; bit < sizeof(bytes) * 8; bit++)
	{
		bytes[bit / 8] ^= (uint8_t) (1 << (bit % 8));
		ok_quietly(!hashes_equal(row_hash(bytes, sizeof(bytes)), before), "a flipped bit changes the hash");
		bytes[bit / 8] ^= (uint8_t) (1 << (bit % 8));
	}
	for (size_t length = 0; length < sizeof(bytes); length++)
		ok_quietly(!hashes_equal(row_hash(bytes, length), row_hash(bytes, length + 1)), "one zero more changes the hash");
	ok(hashes_equal(row_hash(bytes, sizeof(bytes)), before), "each bit and the length change the hash, and nothing else does");
}

static void
order_does_not_matter_but_number_does(void)
{
	const char *rows[] = {"a", "b", "c"};
	const char *other_order[] = {"c", "a", "b"};
	const char *twice[] = {"a", "b", "c", "d", "d"};
	const char *flipped[] = {"a", "b", "C"};
	TableSum	sum = sum_of(rows, 3);
	TableSum	other = sum_of(other_order, 3);

	ok(table_sum_equal(&sum, &other), "the order of the rows does not matter");
	other = sum_of(twice, 5);
	ok(!table_sum_equal(&sum, &other) && other.hash.low != sum.hash.low, "a row that is there twice does not cancel out");
	other = sum_of(flipped, 3);
	ok(!table_sum_equal(&sum, &other), "a row that differs is noticed");
	other = sum_of(rows, 2);
	ok(!table_sum_equal(&sum, &other), "a missing row is noticed");
}

static void
sums_of_parts_give_the_sum_of_all(void)
{
	const char *rows[] = {"a", "b", "c", "d"};
	TableSum	all = sum_of(rows, 4);
	TableSum	parts = sum_of(rows, 1);
	TableSum	rest = sum_of(rows + 1, 3);

	ok(!table_sum_equal(&parts, &all), "a part is not all");
	table_sum_add_sum(&parts, &rest);
	ok(table_sum_equal(&parts, &all), "the sums of two parts give the sum of all");
}

static void
buckets_follow_from_the_key(void)
{
	int			rows_of[8] = {0};

	for (uint32_t key = 0; key < 8000; key++)
		rows_of[row_bucket(&key, sizeof(key), 8)]++;
	for (int i = 0; i < 8; i++)
		ok_quietly(rows_of[i] > 800 && rows_of[i] < 1200, "no bucket has much more than its share");
	ok(row_bucket("key", 3, 8) == row_bucket("key", 3, 8) && row_bucket("key", 3, 1) == 0, "a key has one bucket");
}

/* ---- who differs ---- */

#define VOTER true
#define LEARNER false

static NodeCheck
done(uint32_t node_id, bool is_voter, uint64_t value)
{
	NodeCheck	check = {.node_id = node_id, .is_voter = is_voter, .outcome = CHECK_DONE, .sum = {1, {value, value}}};

	return check;
}

static NodeCheck
not_done(uint32_t node_id, CheckOutcome outcome)
{
	NodeCheck	check = {.node_id = node_id, .is_voter = VOTER, .outcome = outcome};

	return check;
}

static void
one_of_three_differs(void)
{
	NodeCheck	checks[] = {done(1, VOTER, 7), done(2, VOTER, 8), done(3, VOTER, 7)};

	ok(check_verdict(checks, 3, 2, 2) == CHECK_DIFFERS, "the one that differs from the two others knows");
	ok(check_verdict(checks, 3, 2, 1) == CHECK_MATCHES && check_verdict(checks, 3, 2, 3) == CHECK_MATCHES, "they know that they agree");
	ok(check_verdict(checks, 3, 2, 4) == CHECK_UNDECIDED, "of one that said nothing nothing is known");
}

static void
without_a_majority_nobody_differs(void)
{
	NodeCheck	two[] = {done(1, VOTER, 7), done(2, VOTER, 8)};
	NodeCheck	three[] = {done(1, VOTER, 7), done(2, VOTER, 8), done(3, VOTER, 9)};
	NodeCheck	five[] = {done(1, VOTER, 7), done(2, VOTER, 7), done(3, VOTER, 8), done(4, VOTER, 8), done(5, VOTER, 9)};
	TableSum	agreed;

	for (uint32_t node = 1; node <= 5; node++)
	{
		ok_quietly(check_verdict(two, 2, 2, node) == CHECK_UNDECIDED, "two of two, or of three, that differ");
		ok_quietly(check_verdict(three, 3, 2, node) == CHECK_UNDECIDED, "three that all differ");
		ok_quietly(check_verdict(five, 5, 3, node) == CHECK_UNDECIDED, "two against two against one");
	}
	ok(!check_majority(two, 2, 2, &agreed) && !check_majority(five, 5, 3, &agreed), "without a majority nobody is said to differ");
	ok(!check_majority(two, 0, 2, &agreed) && !check_majority(two, 2, 0, &agreed), "nor without results, or without voters");
}

static void
learners_are_judged_and_do_not_judge(void)
{
	NodeCheck	checks[] = {done(1, VOTER, 7), done(2, LEARNER, 7), done(3, LEARNER, 8), done(4, VOTER, 7)};
	NodeCheck	too_few[] = {done(1, VOTER, 7), done(2, LEARNER, 7), done(3, VOTER, 8)};

	ok(check_verdict(checks, 4, 2, 3) == CHECK_DIFFERS && check_verdict(checks, 4, 2, 2) == CHECK_MATCHES, "a learner is compared with the voters");
	ok(check_verdict(too_few, 3, 2, 3) == CHECK_UNDECIDED, "and counts for no majority");
}

static void
what_was_not_read_says_what_it_should(void)
{
	NodeCheck	checks[] = {done(1, VOTER, 7), not_done(2, CHECK_SKIPPED), not_done(3, CHECK_FAILED), done(4, VOTER, 7), done(5, VOTER, 7)};

	ok(check_verdict(checks, 5, 3, 2) == CHECK_UNDECIDED, "a check that was skipped says nothing");
	ok(check_verdict(checks, 5, 3, 3) == CHECK_DIFFERS, "rows that cannot be read differ from those of the majority");
	ok(check_verdict(checks, 4, 3, 3) == CHECK_UNDECIDED, "but only if there is one");
}

int
main(void)
{
	a_hash_is_the_same_for_ever();
	each_bit_and_the_length_count();
	order_does_not_matter_but_number_does();
	sums_of_parts_give_the_sum_of_all();
	buckets_follow_from_the_key();
	one_of_three_differs();
	without_a_majority_nobody_differs();
	learners_are_judged_and_do_not_judge();
	what_was_not_read_says_what_it_should();
	return tap_done();
}
