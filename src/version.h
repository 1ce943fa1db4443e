/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef DMFS_VERSION_H
#define DMFS_VERSION_H
#define DMFS_VERSION "0.1.0"
#endif
