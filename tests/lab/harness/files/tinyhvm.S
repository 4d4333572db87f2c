/* A boot sector as an HVM guest without PV drivers: up in seconds, 16 MiB, and all its disk traffic goes through the
 * emulated IDE.  Prints lines like those of guest.c on COM1, about four times a second, and keeps n in sector 1 of the
 * boot disk: checked against memory each time, continued from after a reboot. */
.code16
.globl _start
.set WRITTEN, 0x7e00            /* what sector 1 must hold: "TINY", n */
.set READ, 0x8000
.set LINE, 0x9000
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    sti
    cld
    mov %dl, drive
    mov $0x3fb, %dx             /* COM1: 38400 8n1 */
    mov $0x80, %al
    out %al, %dx
    mov $0x3f8, %dx
    mov $3, %al
    out %al, %dx
    inc %dx
    xor %al, %al
    out %al, %dx
    mov $0x3fb, %dx
    mov $3, %al
    out %al, %dx
    call read
    cmpl $0x594e4954, READ      /* known disk: go on from its n */
    jne first
    mov READ+4, %eax
    mov %eax, n
    mov %eax, WRITTEN+4
first:
    movl $0x594e4954, WRITTEN
    jmp write                   /* so that there is something to compare with */

tick:
    movw $good, verdict
    call read
    mov READ+4, %eax
    cmp WRITTEN+4, %eax
    je 1f
    incl bad
    movw $wrong, verdict
1:  incl n
    mov $LINE, %bp
    mov $text_n, %si
    call puts
    mov n, %eax
    call number
    mov $text_up, %si
    call puts
    mov 0x46c, %eax             /* BIOS ticks of 55 ms */
    imul $55, %eax
    call number
    mov $text_disk, %si
    call puts
    mov READ+4, %eax
    call number
    mov verdict, %si
    call puts
    mov $text_bad, %si
    call puts
    mov bad, %eax
    call number
    mov $text_end, %si
    call puts
    mov %bp, %cx                /* in one go: each access to a port by itself would cost a trip to QEMU */
    mov $LINE, %si
    sub %si, %cx
    mov $0x3f8, %dx
    rep outsb
write:
    mov n, %eax
    mov %eax, WRITTEN+4
    mov $0x03, %ah
    mov $WRITTEN, %bx
    call disk
    mov 0x46c, %eax
    add $4, %eax
2:  hlt
    cmp %eax, 0x46c
    jb 2b
    jmp tick

read:
    mov $0x02, %ah
    mov $READ, %bx
disk:                           /* ah = function, bx = buffer: one sector, number 1 */
    mov $1, %al
    mov $2, %cx
    xor %dh, %dh
    mov drive, %dl
    int $0x13
    jnc 3f
    incl bad
3:  ret

number:                         /* eax in decimal */
    mov $digits+10, %di
    mov $10, %ecx
4:  xor %edx, %edx
    div %ecx
    add $'0', %dl
    dec %di
    mov %dl, (%di)
    test %eax, %eax
    jnz 4b
    mov %di, %si
puts:                           /* adds to the line at bp */
    lodsb
    test %al, %al
    jz 5f
    mov %al, (%bp)
    inc %bp
    jmp puts
5:  ret

drive: .byte 0
n: .long 0
bad: .long 0
verdict: .word 0
good: .asciz ":ok"
wrong: .asciz ":BAD"
text_n: .asciz "TICK n="
text_up: .asciz " up="
text_disk: .asciz " mem=ok hda="
text_bad: .asciz " bad="
text_end: .asciz " boot=tiny\r\n"
digits: .space 10
    .byte 0
.org 510
.word 0xaa55
