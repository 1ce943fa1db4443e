/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading arguments (target.h). */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>

#include <dmfs/target.h>

bool dm_parse_u64(const char *s, uint64_t *out)
{
	uint64_t n = 0;

	if (!*s)
		return false;
	for (; *s; s++) {
		if (*s < '0' || *s > '9' || __builtin_mul_overflow(n, 10, &n) ||
		    __builtin_add_overflow(n, (uint64_t)(*s - '0'), &n))
			return false;
	}
	*out = n;
	return true;
}

bool dm_parse_uint(const char *s, unsigned *out)
{
	uint64_t n;

	if (!dm_parse_u64(s, &n) || n > UINT_MAX)
		return false;
	*out = (unsigned)n;
	return true;
}

int dm_read_u64(const char *s, uint64_t min, uint64_t max, const char *who, const char *what, uint64_t *out,
		GError **err)
{
	uint64_t n;

	if (!dm_parse_u64(s, &n))
		return dm_fail(err, EINVAL, "%s: %s '%s' is not a number that fits in 64 bits", who, what, s);
	if (n < min || n > max)
		return dm_fail(err, EINVAL, "%s: %s %s is out of range, %" PRIu64 " to %" PRIu64, who, what, s, min,
			       max);
	*out = n;
	return 0;
}

int dm_read_uint(const char *s, unsigned min, unsigned max, const char *who, const char *what, unsigned *out,
		 GError **err)
{
	uint64_t n = 0;
	int error = dm_read_u64(s, min, max, who, what, &n, err);

	if (!error)
		*out = (unsigned)n;
	return error;
}

const char *dm_shift_arg(struct dm_args *as)
{
	if (!as->argc)
		return NULL;
	as->argc--;
	return *as->argv++;
}

int dm_read_arg_group(struct dm_args *as, unsigned min, unsigned max, bool optional, const char *who,
		      const char *what, unsigned *count, GError **err)
{
	const char *word = dm_shift_arg(as);
	int error;

	*count = 0;
	if (!word) {
		if (optional)
			return 0;
		return dm_fail(err, EINVAL, "%s: the number of %s is missing", who, what);
	}
	error = dm_read_uint(word, min, max, who, what, count, err);
	if (!error && *count > (unsigned)as->argc)
		return dm_fail(err, EINVAL, "%s: %u %s are announced, %d arguments follow", who, *count, what,
			       as->argc);
	return error;
}
