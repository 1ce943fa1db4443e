/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All kinds of files of the control tree. */
#ifndef DMFS_FS_FILES_H
#define DMFS_FS_FILES_H

#include "fs.h"

extern const struct dmfs_file dmfs_control_file, dmfs_targets_file, dmfs_version_file, dmfs_log_file, dmfs_devices_file,
	dmfs_concise_file;
extern const struct dmfs_file dmfs_table_file, dmfs_inactive_file, dmfs_suspend_file, dmfs_status_file,
	dmfs_error_file, dmfs_info_file, dmfs_deps_file, dmfs_dev_file, dmfs_uuid_file, dmfs_readonly_file,
	dmfs_message_file, dmfs_events_file;

#endif
