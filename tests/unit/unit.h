/* SPDX-License-Identifier: GPL-2.0-or-later */
/* cmocka, with what it wants included before it. */
#ifndef DMFS_TESTS_UNIT_H
#define DMFS_TESTS_UNIT_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <glib.h>

#endif
