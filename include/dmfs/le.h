/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Little-endian numbers, as most formats have them, and big-endian ones, at any address. */
#ifndef DMFS_LE_H
#define DMFS_LE_H

#include <glib.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t get_le16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return GUINT16_FROM_LE(v);
}

static inline void put_le16(void *p, uint16_t v)
{
	v = GUINT16_TO_LE(v);
	memcpy(p, &v, 2);
}

static inline uint32_t get_le32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return GUINT32_FROM_LE(v);
}

static inline void put_le32(void *p, uint32_t v)
{
	v = GUINT32_TO_LE(v);
	memcpy(p, &v, 4);
}

static inline uint64_t get_le64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return GUINT64_FROM_LE(v);
}

static inline void put_le64(void *p, uint64_t v)
{
	v = GUINT64_TO_LE(v);
	memcpy(p, &v, 8);
}

static inline uint16_t get_be16(const void *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return GUINT16_FROM_BE(v);
}

static inline void put_be16(void *p, uint16_t v)
{
	v = GUINT16_TO_BE(v);
	memcpy(p, &v, 2);
}

static inline uint32_t get_be32(const void *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return GUINT32_FROM_BE(v);
}

static inline void put_be32(void *p, uint32_t v)
{
	v = GUINT32_TO_BE(v);
	memcpy(p, &v, 4);
}

static inline uint64_t get_be64(const void *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return GUINT64_FROM_BE(v);
}

static inline void put_be64(void *p, uint64_t v)
{
	v = GUINT64_TO_BE(v);
	memcpy(p, &v, 8);
}

#endif
