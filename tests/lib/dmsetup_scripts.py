# SPDX-License-Identifier: GPL-2.0-or-later
"""What test_dmsetup_language.py has dmsetup say to the kernel and to dmfs; PRELUDE there has d(), t() and p()."""

SCRIPTS = {}     # name: (script, the minors of devices that stand in tables)


def script(name, text, **minors):
    SCRIPTS[name] = (text, minors)


script("create_and_remove", r"""
d create base --table "0 1000 linear $D0 0"
d create base --table "0 1000 linear $D0 0"
d create top -u UU-1 --table "0 1000 linear /dev/mapper/base 0"
d create c -u UU-1 --table "0 500 zero"
d create c --table "0 500 linear /dev/nosuch 0"
d create c --table "0 500 nosuch"
d create c -u UU-3 --table "0 500 nosuch"
d info c
d create c --table "0 500"
d create c --table "x 500 zero"
d create c --table "0 x zero"
d create c --table "0 500x zero"
d create c --table "0 5 zero
5 error"
d create c /nonexist
d create
d create c d e
d create c --notable --table "0 1 zero"
d create x/y --notable
d create 'q"\x20' --notable
d create c -j $MAJOR -n
d create c --mode 999 -n
d create c --count -1 -n
d create c --table ""
d info c
d remove c
p '# comment\n\n  \n  0 5 zero\n5 5 error' create st1
d table st1
p '0 5 zero\n5 error' create st2
p '0 5 zero\n10 5 error' create st2
p '' create st2
d info st2
printf '0 5 zero\n5 error\n' >"$WORK/file"
d create st3 file
printf '0 5 zero\n5 5 error\n' >"$WORK/file"
d create st3 file
d table st3
d create st4 --table '  0   5    zero   '
d table st4
d create -j $MAJOR -m 30 m30 -n
d info -c m30
d create -m 31 m31 -n
d create -r ro --table "0 500 linear /dev/mapper/base 0"
d info ro
d create "sp ace" --notable
d create 'mn\x20z' --notable
d ls
d mangle
d info -c -o name,mangled_name,unmangled_name
d rename 'mn\x20z' 'm n'
d info "m n"
d remove "sp ace" "m n"
d remove
d remove nosuch
d remove base
d remove m30 m31 nosuch
d remove base top
d remove top st1
d remove_all x
d remove_all
d ls
d -v create v --table "0 5 zero"
d -v remove v
""", base=0, top=1)

script("concise", r"""
d create --concise 'x1,,,,0 1000 zero;x2,uu-x2,9,ro,0 5 zero,5 5 error'
d table --concise
d table --concise x2
d table --concise x1 x2
d create --concise 'x3,,,rx,0 1000 zero'
d create --concise 'x3,,,'
d create --concise 'x3,,,,'
d create --concise ''
d create --concise ';'
d create --concise 'x4,,,,0 1 zero' more
p 'x5,,,,0 1 zero;x6,,,,0 1 zero\n' create --concise
d create --concise 'x7,,,,0 1 zero;x8,,,,0 1 nosuch;x9,,,,0 1 zero'
d create --concise 'y\,1,,,,0 1 zero'
d create --concise 'y2,,,,0 1 zero\'
d create --concise --notable 'y3,,,,0 1 zero'
d create --concise -u foo 'y3,,,,0 1 zero'
d table --concise
d table --concise --target error
d ls
""")

script("load_and_suspend", r"""
d create base --table "0 1000 linear $D0 0"
d create a -r -u UU-2 --table "0 500 linear /dev/mapper/base 0"
d load a --table "0 600 zero"
d info a
d info -c a
d table a
d table --inactive a
d info -c -o name,tables_loaded,suspended,readonly,segments,attr
d suspend a
d info -c -o name,tables_loaded,suspended,readonly,segments,attr
d suspend a
d info a
d resume a
d info a
d resume a
d load a /dev/null
d load a --table "0 500 nosuch"
d load a --table "0 500"
d load a --notable
d load
d load nosuch /dev/null
d load nosuch --table "0 5 zero"
p '0 500 zero\n' reload a
d info -c a
d clear a
d info a
d clear a base
d clear
d clear nosuch
d suspend --noflush --nolockfs a
d resume --noflush a
d suspend
d suspend base a nosuch
d info -c -o name,suspended
d resume nosuch
d resume base a
d wipe_table a
d table a
d wipe_table
d wipe_table nosuch
d load -u UU-2 --table "0 7 zero"
d resume -u UU-2
d table -u UU-2
d suspend -u nosuch
d create empty --notable
d suspend empty
d info empty
d resume empty
d clear empty
d status empty
d table empty
d deps empty
d -v suspend a
d -v status a
d -v table
d -v deps a
d -v load a --table "0 5 zero"
d -v clear a
d -v resume a
d remove -f base
d remove -f a
d table base
d remove empty
""", base=0)

script("rename_message_wait", r"""
d create a --table "0 1000 linear $D0 0"
d create b -u UU-1 --table "0 1000 linear /dev/mapper/a 0"
d rename
d rename a
d rename a b
d rename a a
d rename a b c
d rename a c
d info -c
d rename c a
d rename nosuch x
d rename a x/y
d rename a --setuuid U2
d rename a --setuuid U3
d rename a --setuuid
d rename b --setuuid U2
d info a
d create n --notable
d rename n m
d info m
d message
d message a 0
d message a x foo
d message a -5 foo
d message nosuch 0 foo
d message a 0 foo
d message a 99999 foo
d message a 0 @stats_create - /10
d message a 0 @stats_list
d message a 0 @stats_print 0
d message -u UU-1 0 @stats_list
d wait
d wait nosuch
d wait a 0
d -v wait a 0
d wait a 77
d mknodes
d mknodes a
d mknodes nosuch
d udevcreatecookie
d udevcookies
d foo
d table --bogus
d targets x
d version x
d target-version linear
d target-version nosuch
d target-version linear nosuch
d target-version
dmsetup create w --table "0 10 zero"
dmsetup wait -v w >waited 2>&1 & pid=$!
dmsetup rename w --setuuid WW       # it ends the wait, be it before or after its beginning
wait $pid
t echo $?
t grep Event waited
""", a=0)

script("lists", r"""
d ls
d ls --tree
d info
d info -c
d status
d table
d deps
d ls --target zero
d create a --table "0 1000 linear $D0 0"
d create b -u UU-1 --table "0 1000 linear /dev/mapper/a 0"
d create c --table "0 1000 linear /dev/mapper/a 0
1000 1000 linear $D1 0
2000 500 linear /dev/mapper/b 0"
d create d --table "0 1000 linear /dev/mapper/c 0
1000 1000 linear /dev/mapper/a 0"
d create e --table "0 1000 zero"
d info
d info a
d info a c
d info nosuch
d info -u UU-1
d info -u nosuch
d status
d status a
d status a b
d status nosuch
d status a nosuch
d status --target linear
d status --target zero
d status --target nosuch
d status --target linear a e
d -v status --target zero a
d table
d table a
d table c
d table a b
d table nosuch
d table --target linear
d table --target zero a
d table -u UU-1
d table -u nosuch
d table -j $MAJOR
d table -m 0
d table -j $MAJOR -m 77
d table $MAJOR:0
d table /dev/mapper/a
d table /dev/mapper/nosuch
d table /nosuch/x
d deps
d deps a
d deps a b
d deps c
d deps -o devname d
d deps -o bad
d deps nosuch
d ls
d ls -o devno
d ls -o bad
d ls --target linear
d ls --target nosuch
d ls -v
d ls a
d ls --tree
d ls --tree -o ascii
d ls --tree -o utf
d ls --tree -o vt100
d ls --tree -o inverted
d ls --tree -o compact,notrunc
d ls --tree -o nodevice
d ls --tree -o active,open,rw,uuid
d ls --tree -o active,uuid
d ls --tree -o rw,notrunc
d ls --tree -o compact,open
d ls --tree -o bad
d ls --tree -o compact,bad,utf
LC_ALL=C.UTF-8 d ls --tree
d create a-very-long-device-name-that-goes-on-and-on-and-on-until-the-line-is-full-of-it --table "0 1000 linear /dev/mapper/c 0"
d ls --tree
d ls --tree -o compact
d ls --tree -o nodevice,notrunc
""", a=0, b=1, c=2)

script("columns", r"""
d create zz --table "0 1000 linear $D0 0"
d create b -u UU-1 --table "0 1000 linear /dev/mapper/zz 0"
d create a -r -u UU-2 --table "0 500 linear /dev/mapper/zz 0"
d suspend a
d info -c
d info -C a
d info --columns a b
d info -c a nosuch
d info -c -u UU-1
d info -c -u nosuch
d info -c --noheadings
d info -c --noheadings -o name,uuid,minor
d info -c --separator , -o name,uuid,attr,open
d info -c --noheadings --separator "  " -o minor,name
d info -c --nameprefixes
d info -c --nameprefixes --noheadings
d info -c --nameprefixes --noheadings --separator , a
d info -c --nameprefixes --separator "  " -o name_all
d info -c -o +name a
d info -c -o name,name a
d info -c -o readahead,Name a
d info -c -o tables_loaded,suspended,readonly,read_ahead,segments,events,device_count,device_ref_count
d info -c -o name,names_using_dev,devs_used
d info -o name a
d info --noheadings a
for f in name mangled_name unmangled_name uuid mangled_uuid unmangled_uuid read_ahead attr tables_loaded suspended \
    readonly minor open segments events device_count devs_used device_ref_count names_using_dev; do
    d info -c -o $f a
done
d info -c -O name
d info -c --sort -name
d info -c -O minor
d info -c --sort open,-minor
d info -c --sort -open,name -o uuid
d table --sort name
d status -S name=a
d table -S open=0
d deps -S open=0
d info -c -o name,selected -S 'open>0'
for s in 'name=a' 'name=~"^[ab]$"' 'name!~b' 'name=a||name=b' 'name=a#name=b' 'name!=a && open=0' 'name=a,open=0' \
    '!(name=a)' 'open>=1' 'open>1' 'open<1' 'open<=0' 'open!=0' 'uuid=""' 'uuid=' '' 'name==a' \
    'suspended=Suspended' 'suspended=active' 'readonly=Writeable' 'name = a' "name='a'" 'tables_loaded=Live' \
    'read_ahead=256' 'minor>0 && (name=a || name=zz)' 'device_count=1' 'selected=1' 'devs_used=zz' 'name=~z'; do
    d info -c --noheadings -o name -S "$s"
done
for s in 'name=a extra' 'open=x' 'open=1%' '(name=a' 'name=a)' 'name="a' '!name=a'; do
    d info -c -S "$s"
done
""", zz=0)

script("deferred_remove", r"""
d create open -r --table "0 1000 linear $D0 0"
d create top -r --table "0 1000 linear /dev/mapper/open 0"
d remove open
d remove --deferred open
d info open
d info -c open
d remove --deferred open
d message open 0 @cancel_deferred_remove x
d message open 0 @Cancel_deferred_remove
d info open
d suspend open
d remove --deferred open
d info open
d resume open
d remove open
d create open -n
d ls --tree
d remove top
d ls
d create a --table "0 1000 zero"
d remove --deferred a
d info a
d create a --table "0 1000 linear $D0 0"
d create b --table "0 1000 linear /dev/mapper/a 0"
d create c --table "0 1000 linear /dev/mapper/b 0"
d remove_all --deferred
d ls
d create a --table "0 1000 linear $D0 0"
d create b --table "0 1000 linear /dev/mapper/a 0"
d create c --table "0 1000 linear /dev/mapper/b 0"
d remove --deferred a b c
d ls
d create a --table "0 1000 linear $D0 0"
d create b --table "0 1000 linear /dev/mapper/a 0"
d remove --deferred nosuch
d remove --deferred -f a
d info a
d table
d remove --deferred --retry a
d rename a aa
d info aa
d load aa --table "0 10 error"
d suspend aa
d resume aa
d table aa
d remove b
d ls
d create a --table "0 1000 linear $D0 0"
d create b --table "0 1000 linear /dev/mapper/a 0"
d remove -f a
d table a
d remove_all -f
d ls
d remove -f nosuch
d remove --retry nosuch
d create n -n
d remove -f n
d create n -n
d load n --table "0 5 zero"
d remove -f n
d ls
""", a=0)

script("inactive", r"""
d create a --table "0 1000 linear $D0 0"
d create b -u UU-1 --table "0 1000 linear /dev/mapper/a 0"
d create c --table "0 1000 zero"
d info --inactive a
d status --inactive a
d deps --inactive a
d table --inactive a
d load a --table "0 500 zero
500 2 error"
d load b --table "0 1000 linear /dev/mapper/c 0"
d info --inactive
d info a --inactive
d status --inactive
d status --inactive a b
d table --inactive
d deps --inactive
d deps --inactive b
d ls --inactive
d ls --target zero --inactive
d ls --tree --inactive
d info -c --inactive
d info -c --inactive -o name,device_count,devs_used,segments,attr b
d status --inactive --target zero
d status --inactive --target linear
d table --inactive --target linear
d -v status --inactive b
d suspend a --inactive
d resume a --inactive
d info a
d table a
d wait --inactive a 7
""", a=0, c=2)

script("addressing", r"""
d create a -u UU-A --table "0 1000 linear $D0 0"
d create b --table "0 1000 linear /dev/mapper/a 0"
for c in 'info -c' info status table deps mknodes suspend resume clear; do
    d $c -j $MAJOR -m 0
    d $c -u UU-A
    d $c -j $MAJOR -m 77
    d $c -u nosuch
done
d info -u ''
d info -j 7 -m 0
d table -j 7 -m 0
d wait -j $MAJOR -m 0 7
d message -j $MAJOR -m 0 0 @stats_list
d load -j $MAJOR -m 0 --table "0 3 zero"
d table --inactive -j $MAJOR -m 0
d rename -j $MAJOR -m 77 new
d info -u UU-A b
d table -u UU-A b
d suspend -u nosuch b
d info -c -o name,suspended
d create z1 -j 7 -m 5 -n
d create z2 -j $MAJOR -m 12 -n
d info z2
d create z3 -m 13 -j $MAJOR -r -n
d info z3
d --checks info z3
d --noopencount info z3
d --noudevrules --noudevsync --verifyudev info z3
d --udevcookie 0xd4d0001 info z3
d -y remove z3
d --readahead 8 info z2
d --readahead none info z2
d --readahead +8 info z2
d resume --addnodeonresume a
d resume --addnodeonresume --addnodeoncreate a
d create n1 --addnodeoncreate -n
d create n2 --addnodeonresume --table "0 8 zero"
d info --bad
d info -Z
d info -o
d create 'sp ace' -u 'u u' --table "0 8 zero"
d create 'ha\x20lf' -u 'u\x20v' -n
d create 'mi\x20 x' -n
d create uu -u 'u\x20v w' -n
d create '' -n
d create 12345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678 -n
d info 12345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678
d ls
d info -u 'u u'
d info -u 'u\x20u'
d info 'sp\x20ace'
d info --manglename hex 'sp ace'
d info --manglename hex 'sp\x20ace'
d info -c -o name,mangled_name,unmangled_name,uuid,mangled_uuid,unmangled_uuid
d message 'sp ace' 0 foo
d remove 'nosuch one'
d rename 'sp ace' 'sp\x20ace2'
d rename uu --setuuid 'x\x20 y'
d rename b --setuuid 'x\x20y'
d table
d ls --exec ''
d ls --exec true
d ls --exec false
d ls -o devname,bad
d ls --target zero -o devname
d info --count 2 -c --noheadings a
d table --count 2 a
p '0 5 zero # comment' create st1
p '0 5 zero\r\n' create st2
p ' 0 5 zero \\\n' create st3
p '0\t5\tzero' create st4
d table
""", a=0)

script("udev", r"""
for c in 0 0xd4d0000 0xd4dffff 4294967295 0x0D400000 219742208 x; do
    d udevflags $c
done
d udevflags
d udevflags 1 2
d udevcookie
d udevcookies
d udevcomplete 0x123
d udevcomplete 0xd4d1234
d udevcomplete x
d udevcomplete
d udevcomplete_all x
d -y udevcomplete_all
d -y udevcomplete_all 5
d udevreleasecookie
d udevreleasecookie x
d udevcreatecookie
d create a --table "0 1000 zero"
d setgeometry a 1 2 3
d setgeometry a x 2 3 0
d setgeometry a 1 2 3 99999999999
d setgeometry nosuch 1 2 3 0
d setgeometry
""")

script("statistics_groups", r"""
d create a --table "0 2000 linear $D0 0"
d create b --table "0 3 zero
3 997 linear $D1 5"
d stats create --segments b
d stats list b
d stats list -v b
d stats delete --allregions b
d stats create --segments --nogroup b
d stats delete --allregions b
d stats create --segments --alias foo b
d stats list b
d stats list --group b
d stats list --region b
d stats list --area b
d stats list --area --region --group b
d message b 0 @stats_list
d stats ungroup b
d stats ungroup --groupid 0 b
d stats list b
d message b 0 @stats_list
d stats group b
d stats group --regions 0,1 b
d stats group --regions 0,1 b
d stats list b
d message b 0 @stats_list
d stats ungroup --groupid 0 b
d stats group --regions 0-1 --alias al b
d stats list b
d stats ungroup --groupid 0 b
d stats group --regions 0-7 b
d stats group --regions 1 b
d stats group --regions 1-0 b
d stats group --regions x b
d stats group --regions 0,1
d stats group --regions 0,1 nosuch
d stats group --regions 0,1 --alldevices
d stats create --areas 4 --userdata data b
d stats create --areas 4 b
d stats group --regions 2,3 --alias x b
d stats list b
d stats list --area b
d message b 0 @stats_list
d stats report --group --count 1 b
d stats report --area --count 1 b
d stats print --groupid 2 b
d stats clear --groupid 2 b
d stats delete --groupid 2 --regionid 1 b
d stats delete --groupid 2 b
d stats list b
d stats delete --groupid 77 b
d stats delete --groupid 0 b
d stats delete --regionid 1 b
d stats list b
d stats delete --allregions --alldevices
d stats create --areas 3 --length 999 --bounds 10ms,20ms b
d stats create --bounds 1us,10000ms,100s b
d stats create --bounds 100ms b
d stats create b
f=hist_count,hist_count_bounds,hist_count_ranges,hist_percent,hist_percent_bounds,hist_percent_ranges
d stats report --count 1 -o $f,hist_bins,hist_bounds,hist_ranges,interval,interval_ns,stats_name,name_all b
d stats report --count 1 --noheadings --notimesuffix -o $f b
d stats report --count 1 --relative --histogram b
d stats list --noheadings -o hist_bounds,hist_ranges --notimesuffix b
d stats group --regions 0,1 b
d stats group --regions 0,3 b
d stats create --bounds 10ms,20ms --length 10 b
d stats group --regions 0,4 b
d stats delete --regionid 4 b
d stats delete --regionid 3 b
d message b 0 @stats_list
d stats group --regions 1,1 b
d stats delete --allregions b
d stats create --areasize 4K b
d stats create --areasize 4kb b
d stats create --length 1000b b
d stats create --areasize 512b --start 1k --length 2K b
d stats create --length 10 --areas 3 b
d stats create --programid '' b
d stats create --programid '' --force b
d stats create --nogroup --segments --alias z b
d stats list --allprograms b
d stats list --programid '' b
for u in h H b B s S k K m M g T 3M 512b 1k; do
    d stats list --units $u --noheadings -o region_start,region_len,area_len b
done
d stats delete --regionid 0 b
d stats delete --regionid 1 b
d stats report --count 1 --area --units k --nosuffix b
d stats report --count 1 -S area_id=1 --nameprefixes b
d stats create nosuch
d stats print --allregions nosuch
d stats create -j $MAJOR -m 1
d stats list -j $MAJOR -m 77
d stats delete --allregions --allprograms --alldevices
t dmstats list
t dmstats create b
t dmstats list
t dmstats bogus
t dmstats delete --allregions --alldevices
""")

script("statistics", r"""
d create a --table "0 2000 linear $D0 0"
d create b --table "0 3 zero
3 997 linear $D1 5"
d stats create a
d stats create a b
d stats create --alldevices
d stats create
d stats create --areasize 3 b
d stats create --areasize 4k --start 1k --length 5k b
d stats create --areas 2 --areasize 3 b
d stats create --start x b
d stats create --bounds 10us b
d stats create --bounds 1s,2s,3s b
d stats create --precise --areas 4 b
d stats create --programid other --userdata foo b
d stats list
d stats list a
d stats list -v a
d stats list nosuch
d stats list --programid foo
d stats list --programid other
d stats list --allprograms b
d stats list --noheadings a
d stats list --histogram b
d stats list --units s b
d stats list -o name,region_id,precise,hist_bins,hist_bounds b
d stats print a
d stats print --regionid 0 a
d stats print --regionid 0 --clear a
d stats clear a
d stats clear --regionid 0 a
d stats clear --regionid 77 a
d stats clear --allregions
d stats delete --regionid 2 b
d stats report --count 1 a
d stats report --count 1 --histogram a
d stats report nosuch
d stats delete
d stats delete a
d stats delete --regionid 0
d stats delete --regionid 0 a
d stats delete --regionid 77 a
d stats delete --allregions b
d stats list
d stats bogus
""")
